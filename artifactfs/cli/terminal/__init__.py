"""What all commands share: state root, settings, output, the generated reference."""
