"""The verbs of the command line, one function each.

Each imports what it needs when it runs, so that --help does not wait for torch. A user's
mistake (ValueError) and the machine's (OSError) end in one sentence, see cli.py.
"""
