"""The tree that programs see: finding names, changing them, moving to another base tree."""
