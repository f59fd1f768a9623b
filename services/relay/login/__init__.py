"""Who uses the console: logins, sessions, and a provider of OpenID Connect."""
