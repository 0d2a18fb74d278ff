"""Rounds: a group's state machine (`group`), its frames, all groups of a server, and which server owns one."""
