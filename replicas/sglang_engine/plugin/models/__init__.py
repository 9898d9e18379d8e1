"""Model classes that SGLang finds by their `EntryClass`."""
