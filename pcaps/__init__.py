"""Sample captures, the script that makes them and the events expected of them. Standard library only."""
