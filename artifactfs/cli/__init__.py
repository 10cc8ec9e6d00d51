"""Commands a user types: click groups, rich output."""
