"""What every HTTP server has: endpoints, credentials, TLS, limits. It knows nothing of the process it runs in."""
