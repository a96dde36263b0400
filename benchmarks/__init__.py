"""Speed and memory of routed graphs; see run.py."""
