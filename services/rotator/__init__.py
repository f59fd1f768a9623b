"""Rotates data keys and wraps them anew, by whichever way a service lets itself be administered."""
