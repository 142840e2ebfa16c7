"""From a listed entry to pixels: fetched, decoded and preprocessed in processes of their own."""
