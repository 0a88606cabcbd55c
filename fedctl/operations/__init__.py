"""What each command does, as functions: typed values in, a frozen dataclass out.

Nothing here prints, parses a command line or knows a terminal. An exception leaves an operation only when what was
asked for cannot be done as a whole.
"""
