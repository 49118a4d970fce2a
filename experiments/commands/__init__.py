"""What the commands do, each from its command line on."""
