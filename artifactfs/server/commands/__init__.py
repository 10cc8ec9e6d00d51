"""``artifacts-server``'s commands besides ``serve``."""
