"""SGLang as the engine of a replica: the plugin that runs inside it, and what runs beside it."""
