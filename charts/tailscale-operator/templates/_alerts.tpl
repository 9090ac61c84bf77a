{{/*
What watches the operator's pod: the proxy in it, if there is one, and its controllers. As a YAML list, like all alerts here; each
has a "severity", which becomes a label.
*/}}
{{- define "tailscale-operator.operatorAlerts" -}}
{{- $fullname := include "tailscale-operator.fullname" . -}}
{{- $namespace := include "tailscale-operator.namespace" . -}}
{{- $serves := ne (include "tailscale-operator.mode" .) "false" -}}
{{- $what := ternary "API server proxy" "operator" $serves -}}
{{- $samples := include "tailscale-operator.samples" . -}}
- alert: TailhelmDown
  expr: absent(tailhelm_build_info{ {{- $samples -}} })
  for: 10m
  {{- /* Without a proxy in it, nobody is cut off while the operator is away. */}}
  severity: {{ ternary "critical" "warning" $serves }}
  annotations:
    summary: The {{ $what }} is down, or nobody scrapes its metrics.
    description: Prometheus has no metrics of Deployment {{ $fullname }} in namespace {{ $namespace }}. Look at the pod, and at its target in Prometheus.
{{- if $serves }}
- alert: TailhelmNotReady
  expr: tailhelm_ready{ {{- $samples -}} } == 0
  for: 10m
  severity: critical
  annotations:
    summary: The API server proxy is not ready.
    description: >-
      Nobody reaches the API server through pod {{ "{{ $labels.pod }}" }}. {{ include "tailscale-operator.failingChecks" (list "namespace" "pod") -}}
      Its /readyz?verbose says why.
{{- end }}
{{ include "tailscale-operator.warningAlert" (dict "name" "Tailhelm" "samples" $samples "by" "namespace" "what" $what "also" "") }}
{{- if $serves }}
{{ include "tailscale-operator.alerts" (dict "root" . "samples" $samples "name" "Tailhelm" "by" "" "unit" "pod" "what" "API server proxy" "where" "pod {{ $labels.pod }}") }}
{{- end }}
{{- end -}}

{{/* What watches the replicas of ProxyGroups. One target may be scraped twice, by a ProxyClass' monitor, too: it counts once. */}}
{{- define "tailscale-operator.proxyGroupAlerts" -}}
{{- $by := "tailscale_com_parent_resource" -}}
{{- $own := include "tailscale-operator.replicaSamples" . -}}
{{- $samples := printf "%s,tailscale_com_parent_resource!=\"\"" $own -}}
- alert: TailhelmProxyGroupDown
  expr: >-
    {{ include "tailscale-operator.readyReplicas" (dict "metric" "tailhelm_ready" "samples" $samples) }} == 0
    {{- range .Values.proxyGroups }}
    {{- if ne (toString .replicas) "0" }}
    or absent(tailhelm_build_info{ {{- $own }},tailscale_com_parent_resource="{{ .name }}"})
    {{- end }}
    {{- end }}
  for: 5m
  severity: critical
  annotations:
    summary: No replica of an API server proxy is ready, or nobody scrapes their metrics.
    description: >-
      Nobody reaches the API server through ProxyGroup {{ "{{ $labels.tailscale_com_parent_resource }}" }}. {{ include "tailscale-operator.failingChecks" (list "namespace" $by) -}}
      `kubectl describe proxygroup {{ "{{ $labels.tailscale_com_parent_resource }}" }}` says why.
- alert: TailhelmProxyGroupReplicaNotReady
  expr: >-
    {{ include "tailscale-operator.missingReplicas" (dict "metric" "tailhelm_ready" "samples" $samples) }}
    {{- range .Values.proxyGroups }}
    or {{ include "tailscale-operator.readyReplicas" (dict "metric" "tailhelm_ready" "samples" (printf "%s,tailscale_com_parent_resource=%q" $own .name)) }} < {{ if kindIs "invalid" .replicas }}2{{ else }}{{ int64 .replicas }}{{ end }}
    {{- end }}
  for: 15m
  severity: warning
  annotations:
    summary: Replicas of an API server proxy are not ready.
    description: >-
      {{ "{{ $value }}" }} replicas of ProxyGroup {{ "{{ $labels.tailscale_com_parent_resource }}" }} are ready, fewer than it should have. {{ include "tailscale-operator.failingChecks" (list "namespace" $by) -}}
      `kubectl describe proxygroup {{ "{{ $labels.tailscale_com_parent_resource }}" }}` says why.
{{ include "tailscale-operator.warningAlert" (dict "name" "TailhelmProxyGroup" "samples" $samples "by" (printf "namespace, %s" $by) "what" "replica of an API server proxy" "also" "tailhelm_ready") }}
{{ include "tailscale-operator.alerts" (dict "root" . "samples" $samples "name" "TailhelmProxyGroup" "by" $by "unit" $by "what" "API server proxy" "where" "the pods of ProxyGroup {{ $labels.tailscale_com_parent_resource }}") }}
{{- end -}}

{{/* What watches recorders. */}}
{{- define "tailscale-operator.recorderAlerts" -}}
{{- $by := "tailscale_com_parent_resource" -}}
{{- $own := include "tailscale-operator.replicaSamples" . -}}
{{- $samples := printf "%s,tailscale_com_parent_resource!=\"\"" $own -}}
- alert: TailhelmRecorderNotReady
  expr: >-
    {{ include "tailscale-operator.readyReplicas" (dict "metric" "tailhelm_recorder_ready" "samples" $samples) }} == 0
    {{- range .Values.recorders }}
    {{- if ne (toString (.spec | default dict).replicas) "0" }}
    or absent(tailhelm_recorder_ready{ {{- $own }},tailscale_com_parent_resource="{{ .name }}"})
    {{- end }}
    {{- end }}
  for: 5m
  severity: critical
  annotations:
    summary: A recorder takes no recordings, or nobody scrapes its metrics.
    description: >-
      Unless another recorder takes them, sessions that must be recorded are refused, and others are not recorded. {{ include "tailscale-operator.failingChecks" (list "namespace" $by) -}}
      `kubectl describe recorder {{ "{{ $labels.tailscale_com_parent_resource }}" }}` says why.
- alert: TailhelmRecorderReplicaNotReady
  expr: >-
    {{ include "tailscale-operator.missingReplicas" (dict "metric" "tailhelm_recorder_ready" "samples" $samples) }}
    {{- range .Values.recorders }}
    {{- $replicas := (.spec | default dict).replicas }}
    or {{ include "tailscale-operator.readyReplicas" (dict "metric" "tailhelm_recorder_ready" "samples" (printf "%s,tailscale_com_parent_resource=%q" $own .name)) }} < {{ if kindIs "invalid" $replicas }}1{{ else }}{{ int64 $replicas }}{{ end }}
    {{- end }}
  for: 15m
  severity: warning
  annotations:
    summary: Replicas of a recorder take no recordings.
    description: >-
      {{ "{{ $value }}" }} replicas of Recorder {{ "{{ $labels.tailscale_com_parent_resource }}" }} take recordings, fewer than it should have. {{ include "tailscale-operator.failingChecks" (list "namespace" $by) -}}
      `kubectl describe recorder {{ "{{ $labels.tailscale_com_parent_resource }}" }}` says why.
{{ include "tailscale-operator.warningAlert" (dict "name" "TailhelmRecorder" "samples" $samples "by" (printf "namespace, %s" $by) "what" "recorder" "also" "tailhelm_recorder_ready") }}
- alert: TailhelmRecorderDiskFilling
  expr: min by (namespace, tailscale_com_parent_resource, pod) (tailhelm_recorder_free_bytes{ {{- $samples -}} }) < {{ mulf .Values.metrics.prometheusRule.thresholds.recorderFreeMebibytes 1048576 | int64 }}
  for: 5m
  severity: warning
  annotations:
    summary: The disk of a recorder is nearly full.
    description: >-
      {{ "{{ $value | humanize1024 }}" }}B are free for pod {{ "{{ $labels.pod }}" }} of Recorder {{ "{{ $labels.tailscale_com_parent_resource }}" }}. It refuses
      recordings below spec.recordings.minFree: give it a larger volume, or set keep or maxTotal.
- alert: TailhelmRecorderRecordingsDeleted
  expr: sum by (namespace, tailscale_com_parent_resource, pod) (increase(tailhelm_recorder_deleted_total{ {{- $samples -}},reason="space"}[1h])) > 0
  severity: warning
  annotations:
    summary: A recorder deletes recordings for want of space.
    description: >-
      Pod {{ "{{ $labels.pod }}" }} of Recorder {{ "{{ $labels.tailscale_com_parent_resource }}" }} has no room for them in spec.recordings.maxTotal. They are older
      than spec.recordings.keepAtLeast; the log of the pod names them. Set a larger maxTotal, and a larger volume, to keep recordings longer.
{{- end -}}

{{/* How many replicas of each group or recorder are ready: "metric" says whether one is, of "samples". */}}
{{- define "tailscale-operator.readyReplicas" -}}
sum by (namespace, tailscale_com_parent_resource) (max by (namespace, tailscale_com_parent_resource, pod) ({{ .metric }}{ {{- .samples -}} }))
{{- end -}}

{{/* The same, of those with fewer than there are pods. */}}
{{- define "tailscale-operator.missingReplicas" -}}
{{ include "tailscale-operator.readyReplicas" . }} < count by (namespace, tailscale_com_parent_resource) (count by (namespace, tailscale_com_parent_resource, pod) ({{ .metric }}{ {{- .samples -}} }))
{{- end -}}

{{/*
Alerts that are the same for the proxy in the operator's pod and for replicas, as a YAML list. From "root"; "samples",
which selects the proxy's; "name", which theirs begin with; "by", the label that tells proxies apart; "unit", the
label that tells apart what a description sends people to (the same, or "pod"); and in words, "what" they watch and "where" it is.
*/}}
{{- define "tailscale-operator.alerts" -}}
{{- $thresholds := .root.Values.metrics.prometheusRule.thresholds -}}
{{- $by := ternary "namespace" (printf "namespace, %s" .by) (empty .by) -}}
{{- $unit := printf "namespace, %s" .unit -}}
{{- $requests := printf "sum by (%s) (rate(tailhelm_apiproxy_requests_total{%s}[5m]))" $by .samples -}}
{{- $ordinary := printf "sum by (%s) (rate(tailhelm_apiproxy_requests_total{%s,kind=\"rest\"}[5m]))" $by .samples -}}
- alert: {{ .name }}CertificateExpiring
  {{- /* 0 is no certificate yet. */}}
  expr: min by ({{ $unit }}) (tailhelm_certificate_expiry_timestamp_seconds{ {{- .samples -}} } > 0) < time() + {{ mulf $thresholds.certificateDays 86400 | int64 }}
  for: 1h
  severity: warning
  annotations:
    summary: The certificate of the {{ .what }} ends soon.
    description: It should have been renewed by now. The log of {{ .where }} says why it was not.
- alert: {{ .name }}Refusals
  expr: sum by ({{ $by }}, reason) (rate(tailhelm_apiproxy_refusals_total{ {{- .samples -}} }[5m])) > {{ $thresholds.refusalsPerSecond }}
  for: 10m
  severity: warning
  annotations:
    summary: The {{ .what }} refuses many requests.
    description: The reason is {{ "{{ $labels.reason }}" }}. The log of the pods says whose requests they are.
- alert: {{ .name }}RecordingRefused
  expr: {{ include "tailscale-operator.refused" (dict "by" $by "samples" .samples "reasons" "no_recorder|recorder_unavailable") }}
  severity: critical
  annotations:
    summary: People cannot work through the {{ .what }}, because no recorder takes what must be recorded.
    description: >-
      The reason is {{ "{{ $labels.reason }}" }}. Only callers whose grants have enforceRecorder are refused. `kubectl get recorders` shows whether
      the recorders are ready; the log of the pods says which were asked, and why they did not take it.
- alert: {{ .name }}IdentityFailing
  expr: {{ include "tailscale-operator.refused" (dict "by" $by "samples" .samples "reasons" "credentials_unavailable|identity_unavailable|not_impersonated|not_recorded") }}
  severity: critical
  annotations:
    summary: The {{ .what }} refuses people because it cannot tell who they are, or cannot act as them.
    description: The reason is {{ "{{ $labels.reason }}" }}. That is not the callers' doing. The log of the pods has the error.
- alert: {{ .name }}Errors
  expr: >-
    sum by ({{ $by }}) (rate(tailhelm_apiproxy_requests_total{ {{- .samples -}},code=~"5.."}[5m])) / {{ $requests }} > {{ $thresholds.errorRatio }}
    and {{ $requests }} > {{ $thresholds.requestsPerSecond }}
  for: 10m
  severity: warning
  annotations:
    summary: Many requests through the {{ .what }} fail.
    description: The API server cannot be reached from the pods, or fails itself. {{ "{{ $value | humanizePercentage }}" }} of the answers are errors.
- alert: {{ .name }}Slow
  expr: >-
    histogram_quantile(0.99, sum by ({{ $by }}, le) (rate(tailhelm_apiproxy_request_duration_seconds_bucket{ {{- .samples -}},kind="rest"}[5m]))) > {{ $thresholds.latencySeconds }}
    and {{ $ordinary }} > {{ $thresholds.requestsPerSecond }}
  for: 10m
  severity: warning
  annotations:
    summary: Requests through the {{ .what }} are slow.
    description: One of 100 ordinary requests takes more than {{ "{{ $value | humanizeDuration }}" }}.
- alert: {{ .name }}RecordingsIncomplete
  expr: sum by ({{ $unit }}) (increase(tailhelm_apiproxy_recordings_total{ {{- .samples -}},result=~"incomplete|none"}[15m])) > 0
  severity: warning
  annotations:
    summary: The {{ .what }} has sessions that no recorder has, or not to their end.
    description: 'A recorder was lost, or none was reached. The log of {{ .where }} says whose sessions they are: look for "recording".'
- alert: {{ .name }}EventsLost
  expr: sum by ({{ $unit }}) (increase(tailhelm_apiproxy_events_total{ {{- .samples -}},result="lost"}[15m])) > 0
  severity: warning
  annotations:
    summary: The {{ .what }} has requests whose events no recorder has.
    description: >-
      No recorder took them. `kubectl get recorders` shows whether the recorders are ready; the log of {{ .where }} says why they did not take them.
{{- end -}}

{{/*
Whether requests were refused for one of "reasons" in the last ten minutes, "by" these labels and the reason.
*/}}
{{- define "tailscale-operator.refused" -}}
{{- $counter := printf "tailhelm_apiproxy_refusals_total{%s,reason=~\"%s\"}" .samples .reasons -}}
sum by ({{ .by }}, reason) (increase({{ $counter }}[10m])) > 0
{{- end -}}

{{/*
The alert for checks that warn, as a YAML list: "name", "samples", "by" of what is watched, and "what" it is in words. "also"
is a metric that these pods alone have, or "".
*/}}
{{- define "tailscale-operator.warningAlert" -}}
{{- $own := "" -}}
{{- with .also -}}
{{- $own = printf " and on (namespace, pod) %s{%s}" . $.samples -}}
{{- end -}}
- alert: {{ .name }}Warning
  expr: max by ({{ .by }}, pod, check) (tailhelm_check_warning{ {{- .samples -}} }) == 1{{ $own }}
  for: 15m
  severity: warning
  annotations:
    summary: The {{ .what }} works, and soon will not if nobody looks after it.
    description: >-
      The check {{ "{{ $labels.check }}" }} of pod {{ "{{ $labels.pod }}" }} warns. Its /readyz?verbose and its log say what about.
{{- end -}}

{{/* Names of the checks that fail, as a sentence for a description. From a list of the alert's labels that select them. */}}
{{- define "tailscale-operator.failingChecks" -}}
{{- $matchers := list -}}
{{- $values := list -}}
{{- range . -}}
{{- $matchers = append $matchers (printf "%s=%%q" .) -}}
{{- $values = append $values (printf "$labels.%s" .) -}}
{{- end -}}
{{ printf "{{ with query (printf %q %s) }}" (printf "max by (check) (tailhelm_check_failing{%s}) == 1" (join "," $matchers)) (join " " $values) -}}
{{ "What fails: {{ range $i, $sample := . }}{{ if $i }}, {{ end }}{{ $sample.Labels.check }}{{ end }}. {{ end }}" }}
{{- end -}}

{{/* A group of rules, from "root", "name" and "rules": those that are not disabled, with the labels and annotations of all alerts. */}}
{{- define "tailscale-operator.alertGroup" -}}
{{- $config := .root.Values.metrics.prometheusRule -}}
{{- $rules := list -}}
{{- range .rules | fromYamlArray -}}
{{- if not (get $config.disabled .alert) -}}
{{- $annotations := .annotations -}}
{{- if $config.runbookUrl -}}
{{- $annotations = merge (dict "runbook_url" (printf "%s%s" $config.runbookUrl (lower .alert))) $annotations -}}
{{- end -}}
{{- $labels := merge (deepCopy $config.alertLabels) (dict "severity" .severity) -}}
{{- $annotations = merge (deepCopy $config.alertAnnotations) $annotations -}}
{{- $rules = append $rules (merge (dict "labels" $labels "annotations" $annotations) (omit . "severity")) -}}
{{- end -}}
{{- end -}}
{{- with $rules -}}
- name: {{ $.name | quote }}
  rules:
    {{- toYaml . | nindent 4 }}
{{- end -}}
{{- end -}}
