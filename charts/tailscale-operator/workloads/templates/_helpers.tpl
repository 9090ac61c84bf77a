{{/* What the objects are of: a ProxyGroup, or a Recorder. One of the two is given. */}}
{{- define "workloads.name" -}}
{{- if .Values.proxyGroup }}{{ .Values.proxyGroup.name }}{{ else }}{{ .Values.recorder.name }}{{ end -}}
{{- end -}}

{{/* What the StatefulSet looks like, by a ProxyClass or a Recorder, in the form of a ProxyClass. */}}
{{- define "workloads.statefulSet" -}}
{{- if .Values.proxyGroup -}}
{{- .Values.proxyClass.statefulSet | default dict | toYaml -}}
{{- else -}}
{{- $set := deepCopy (.Values.recorder.spec.statefulSet | default dict) -}}
{{- $pod := $set.pod | default dict -}}
{{- $_ := set $pod "tailscaleContainer" ($pod.container | default dict) -}}
{{- set $set "pod" $pod | toYaml -}}
{{- end -}}
{{- end -}}

{{/* Name of the pods' ServiceAccount. */}}
{{- define "workloads.serviceAccount" -}}
{{- ((include "workloads.statefulSet" . | fromYaml).pod | default dict).serviceAccount | default dict | dig "name" "" | default (include "workloads.name" .) -}}
{{- end -}}

{{/* Labels by which the objects, and the pods, are found. They never change. */}}
{{- define "workloads.selectorLabels" -}}
tailscale.com/managed: "true"
tailscale.com/parent-resource-type: {{ ternary "proxygroup" "recorder" (not (empty .Values.proxyGroup)) }}
tailscale.com/parent-resource: {{ include "workloads.name" . | quote }}
{{- end -}}

{{/* Labels of the objects, which win over those of people. */}}
{{- define "workloads.ownLabels" -}}
app.kubernetes.io/name: {{ ternary "tailscale-proxygroup" "recorder" (not (empty .Values.proxyGroup)) }}
app.kubernetes.io/instance: {{ include "workloads.name" . | quote }}
app.kubernetes.io/component: {{ ternary "kube-apiserver-proxy" "session-recorder" (not (empty .Values.proxyGroup)) }}
app.kubernetes.io/part-of: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: tailscale-operator
{{ include "workloads.selectorLabels" . }}
{{- end -}}

{{- define "workloads.labels" -}}
{{- toYaml (merge (include "workloads.ownLabels" . | fromYaml) (.Values.defaults.commonLabels | default dict)) -}}
{{- end -}}

{{/*
The container's environment. A variable is there once: the operator's own win over those of the
ProxyClass or the Recorder, and these over the chart's.
*/}}
{{- define "workloads.env" -}}
{{- $taken := list "POD_INDEX" "POD_NAME" "POD_NAMESPACE" "POD_UID" "TS_PORT" -}}
{{- $set := include "workloads.statefulSet" . | fromYaml -}}
- name: POD_INDEX
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
{{- with .Values.wireguardPort }}
- name: TS_PORT
  value: {{ . | int64 | toString | quote }}
{{- end }}
{{- if .Values.recorder }}
{{- $taken = append $taken "RECORDINGS_DIR" }}
- name: RECORDINGS_DIR
  value: /data/recordings
{{- end }}
{{- if and .Values.proxyGroup .Values.proxyClass.useLetsEncryptStagingEnvironment }}
{{- $taken = append $taken "TS_DEBUG_ACME_DIRECTORY_URL" }}
- name: TS_DEBUG_ACME_DIRECTORY_URL
  value: https://acme-staging-v02.api.letsencrypt.org/directory
{{- end }}
{{- $more := list }}
{{- range concat (reverse ((($set.pod | default dict).tailscaleContainer | default dict).env | default list)) (reverse (.Values.defaults.extraEnv | default list)) }}
{{- if not (has .name $taken) }}
{{- $taken = append $taken .name }}
{{- $more = prepend $more . }}
{{- end }}
{{- end }}
{{- $container := ($set.pod | default dict).tailscaleContainer | default dict }}
{{- if and (dig "limits" "memory" "" ($container.resources | default .Values.defaults.resources | default dict)) (not (has "GOMEMLIMIT" $taken)) }}
# Go's garbage collector works harder before the kernel ends the container.
- name: GOMEMLIMIT
  valueFrom:
    resourceFieldRef:
      resource: limits.memory
{{- end }}
{{- with $more }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Spread over nodes and zones, unless the ProxyClass or the chart says otherwise. */}}
{{- define "workloads.topologySpreadConstraints" -}}
{{- $selector := dict "matchLabels" (include "workloads.selectorLabels" . | fromYaml) -}}
{{- range ((include "workloads.statefulSet" . | fromYaml).pod | default dict).topologySpreadConstraints | default .Values.defaults.topologySpreadConstraints }}
- {{ ternary . (merge (dict "labelSelector" $selector) .) (hasKey . "labelSelector") | toYaml | nindent 2 | trim }}
{{- end -}}
{{- end -}}

{{/* Longer than a pod may take to withdraw from the Service and to drain. */}}
{{- define "workloads.gracePeriod" -}}
{{- with .Values.defaults -}}
{{- .terminationGracePeriodSeconds | default (add .withdrawDelaySeconds .drainTimeoutSeconds 20) | int64 -}}
{{- end -}}
{{- end -}}

{{/* Pull secrets of the chart and of the ProxyClass or the Recorder, each once. */}}
{{- define "workloads.imagePullSecrets" -}}
{{- range concat (.Values.defaults.imagePullSecrets | default list) (((include "workloads.statefulSet" . | fromYaml).pod | default dict).imagePullSecrets | default list) | uniq }}
- {{ toYaml . | nindent 2 | trim }}
{{- end -}}
{{- end -}}

{{/* What is the same in the spec of all pods. */}}
{{- define "workloads.podSpec" -}}
{{- $defaults := .Values.defaults -}}
{{- $pod := (include "workloads.statefulSet" . | fromYaml).pod | default dict -}}
{{- with include "workloads.imagePullSecrets" . }}
imagePullSecrets:
  {{- . | trim | nindent 2 }}
{{- end }}
{{- with $defaults.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.dnsPolicy | default $defaults.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with $pod.dnsConfig | default $defaults.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with mergeOverwrite (deepCopy $defaults.podSecurityContext) ($pod.securityContext | default dict) }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.nodeName }}
nodeName: {{ . | quote }}
{{- end }}
{{- with $pod.nodeSelector | default $defaults.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.affinity | default $defaults.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations | default $defaults.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "workloads.topologySpreadConstraints" . }}
topologySpreadConstraints:
  {{- . | trim | nindent 2 }}
{{- end }}
{{- with $pod.priorityClassName | default $defaults.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $defaults.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* What is the same in all containers. */}}
{{- define "workloads.container" -}}
{{- $defaults := .Values.defaults -}}
{{- $container := ((include "workloads.statefulSet" . | fromYaml).pod | default dict).tailscaleContainer | default dict -}}
startupProbe:
  httpGet:
    path: /livez
    port: metrics
  {{- with $defaults.startupProbe }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
livenessProbe:
  httpGet:
    path: /livez
    port: metrics
  {{- with $defaults.livenessProbe }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
  {{- with $defaults.readinessProbe }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $container.resources | default $defaults.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with mergeOverwrite (deepCopy $defaults.securityContext) ($container.securityContext | default dict) }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
