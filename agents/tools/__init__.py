"""What command-line tools of vendors print, read strictly.

Every number that is returned stood in the text with its unit, once, and every other line of the
text is one that the tool is known to print: what is missing, cut off, doubled or new is
`BadOutput`, and never a number. What the tools themselves say went wrong is a typed error with
advice. Nothing here runs a tool: see `agents.commands`.
"""
