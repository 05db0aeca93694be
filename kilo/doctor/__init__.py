"""``kg doctor``: looks for what usually goes wrong on a node, and says how to mend it. Changes nothing."""
