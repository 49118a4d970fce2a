"""How a process runs beside others, and how it ends."""
