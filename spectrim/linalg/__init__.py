"""Pure tensor mathematics; imports nothing from the rest of the library but its errors."""
