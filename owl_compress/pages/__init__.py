"""What a person reads or looks at: the model card and the chart."""
