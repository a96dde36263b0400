"""Tasks, environments and the processes that run them."""
