"""The panels: a module for each row of the dashboard, and `panel_types` with their builders."""
