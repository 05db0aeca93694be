"""Netlink as netctl needs it: a socket with an error for every change, and the messages as structs.

Why not pyroute2 for this: see docs/design/netctl.md, which has the measurements.
"""
