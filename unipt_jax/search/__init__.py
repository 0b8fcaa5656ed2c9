"""Your own pictures, your own sentence: an index of a folder of crops, and its answers."""
