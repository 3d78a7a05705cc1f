"""What cluster.py is made of: an engine whose passes take a time given, the pool it scores, and the driver measured."""
