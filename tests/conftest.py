"""What every test stands on."""

import asyncio

# looptime asks for the event loop before each test; before the first asynchronous one, Python 3.11 would make a loop
# that nobody closes, and the warning of it would hit whichever test comes next. Having set none once, it makes none.
asyncio.set_event_loop(None)
