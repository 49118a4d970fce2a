"""One commented YAML an experiment, the schema that explains every key, and the loading of both."""
