"""Routes of other servers: thin translations onto the parts of `/predict`, so that their clients need no change."""
