"""What a run would find and need, told before it begins: nothing is encoded, downloaded or written."""
