{{/*
Alerts that are the same for the proxy in the operator's pod and for replicas. From "root"; "labels" of the alerts; "samples",
which selects the proxy's; "name", which theirs begin with; "by", the label that tells proxies apart, or ""; and
in words, "what" they watch and "where" it is.
*/}}
{{- define "tailscale-operator.alerts" -}}
{{- $thresholds := .root.Values.metrics.prometheusRule.thresholds -}}
{{- $by := ternary "namespace" (printf "namespace, %s" .by) (empty .by) -}}
- alert: {{ .name }}CertificateExpiring
  {{- /* 0 is no certificate yet. */}}
  expr: min by ({{ $by }}{{ ternary ", pod" "" (empty .by) }}) (tailhelm_certificate_expiry_timestamp_seconds{ {{- .samples -}} } > 0) < time() + {{ mulf $thresholds.certificateDays 86400 | int64 }}
  for: 1h
  labels:
    {{- toYaml .labels | nindent 4 }}
  annotations:
    summary: The certificate of the {{ .what }} ends soon.
    description: "It should have been renewed by now. The log of {{ .where }} says why it was not."
- alert: {{ .name }}Refusals
  expr: sum by ({{ $by }}, reason) (rate(tailhelm_apiproxy_refusals_total{ {{- .samples -}} }[5m])) > {{ $thresholds.refusalsPerSecond }}
  for: 10m
  labels:
    {{- toYaml .labels | nindent 4 }}
  annotations:
    summary: The {{ .what }} refuses many requests.
    description: "The reason is {{ "{{ $labels.reason }}" }}. The log of the pods says whose requests they are."
- alert: {{ .name }}Errors
  expr: sum by ({{ $by }}) (rate(tailhelm_apiproxy_requests_total{ {{- .samples -}},code=~"5.."}[5m])) / sum by ({{ $by }}) (rate(tailhelm_apiproxy_requests_total{ {{- .samples -}} }[5m])) > {{ $thresholds.errorRatio }}
  for: 10m
  labels:
    {{- toYaml .labels | nindent 4 }}
  annotations:
    summary: Many requests through the {{ .what }} fail.
    description: "The API server cannot be reached from the pods, or fails itself. {{ "{{ $value | humanizePercentage }}" }} of the answers are errors."
- alert: {{ .name }}Slow
  expr: histogram_quantile(0.99, sum by ({{ $by }}, le) (rate(tailhelm_apiproxy_request_duration_seconds_bucket{ {{- .samples -}},kind="rest"}[5m]))) > {{ $thresholds.latencySeconds }}
  for: 10m
  labels:
    {{- toYaml .labels | nindent 4 }}
  annotations:
    summary: Requests through the {{ .what }} are slow.
    description: "One of 100 ordinary requests takes more than {{ "{{ $value | humanizeDuration }}" }}."
- alert: {{ .name }}RecordingsIncomplete
  expr: sum by ({{ $by }}) (increase(tailhelm_apiproxy_recordings_total{ {{- .samples -}},result=~"incomplete|none"}[15m])) > 0
  labels:
    {{- toYaml .labels | nindent 4 }}
  annotations:
    summary: The {{ .what }} has sessions that no recorder has, or not to their end.
    description: "A recorder was lost, or none was reached. The log of {{ .where }} says whose sessions they are: look for \"recording\"."
- alert: {{ .name }}EventsLost
  expr: sum by ({{ $by }}) (increase(tailhelm_apiproxy_events_total{ {{- .samples -}},result="lost"}[15m])) > 0
  labels:
    {{- toYaml .labels | nindent 4 }}
  annotations:
    summary: The {{ .what }} has requests whose events no recorder has.
    description: "No recorder took them. The log of {{ .where }} says why."
{{- end -}}
