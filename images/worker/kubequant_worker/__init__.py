"""The worker: fetches a model, quantizes it, measures what was lost, publishes the artifact."""
