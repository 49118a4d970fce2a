"""Files as they are found, fetched and written."""
