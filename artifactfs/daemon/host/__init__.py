"""The machine: mounts of the kernel, bind mounts, the log, the service manager."""
