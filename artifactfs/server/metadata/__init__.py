"""What the metadata database holds: namespaces, repositories, tokens, and which token may do what;
and limits in memory."""
