"""Carries out the commands, each from its command line on."""
