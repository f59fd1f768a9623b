"""A payload as a person sees it, in a terminal or as a page. Nothing is sent."""
