"""The data folder: settings, gitdirs, shared objects, backups and upkeep."""
