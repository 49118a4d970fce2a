"""Test-time methods, whose scores of an image depend on the images that came before it, and how they are compared over orders."""
