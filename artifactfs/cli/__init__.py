"""Commands a user types: click groups, rich output.

A new command is a function in a module of one of the rooms, and its name in the table of ``main``;
``scripts/generate-docs`` then writes its page.
"""
