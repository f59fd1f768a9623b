"""The panels: a file for each row of the dashboard, and `kinds`, what they are made of."""
