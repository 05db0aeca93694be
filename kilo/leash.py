"""The line between the parent and one of its workers: a socket pair, and orders of one byte each.

The parent's end closes with the parent, however it dies, and so tells the worker that it is alone.
Orders are kept until they are read, so one may be given before the worker's code has been loaded.
"""

from kilo.log import LEVELS

GO = b"G"
"""To the worker: start your work. It loads its code and its configuration without being told."""
HOLD = b"H"
"""To the worker: the end is near, and you will be told when; pay no attention to signals."""
END = b"E"
"""To the worker: end, and clean up as the flags say; before GO: clean up, and nothing else."""
QUIT = b"Q"
"""To the worker: end, and leave everything as it is."""
LEVEL_ORDERS = {str(number).encode(): level for number, level in enumerate(LEVELS)}
"""To the worker: log from this level on."""
STARTED = b"S"
"""From the worker: my configuration is good, and I have started."""
TAKEN = b"T"
"""From the worker: another agent does my work on this host; I end."""
CLEANED = b"C"
"""From the worker: I have done what END asks for."""
