"""What the metadata database holds: namespaces, repositories, tokens; and limits in memory."""
