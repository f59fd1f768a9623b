"""The parts that the web pages of all services share."""
