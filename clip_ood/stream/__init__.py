"""Streams: test-time methods, whose scores depend on the images before, and how they are compared; whether a stream has changed."""
