"""From files and notes to what the network reads: decoding in a bounded process, pixels, tokens."""
