"""Mail, through SMTP."""
