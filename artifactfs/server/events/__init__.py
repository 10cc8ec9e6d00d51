"""What happened: events, webhooks, analytics, metrics and the access log."""
