{{/* Labels by which the group's objects, and its pods, are found. They never change. */}}
{{- define "workloads.selectorLabels" -}}
tailscale.com/managed: "true"
tailscale.com/parent-resource-type: proxygroup
tailscale.com/parent-resource: {{ .Values.proxyGroup.name | quote }}
{{- end -}}

{{/* Labels of the group's objects, which win over those of people. */}}
{{- define "workloads.ownLabels" -}}
app.kubernetes.io/name: tailscale-proxygroup
app.kubernetes.io/instance: {{ .Values.proxyGroup.name | quote }}
app.kubernetes.io/component: kube-apiserver-proxy
app.kubernetes.io/part-of: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: tailscale-operator
{{ include "workloads.selectorLabels" . }}
{{- end -}}

{{- define "workloads.labels" -}}
{{- toYaml (merge (include "workloads.ownLabels" . | fromYaml) (.Values.defaults.commonLabels | default dict)) -}}
{{- end -}}

{{/*
The container's environment. A variable is there once: the operator's own win over those of the
ProxyClass, and these over the chart's.
*/}}
{{- define "workloads.env" -}}
{{- $taken := list "POD_INDEX" "POD_NAME" "POD_NAMESPACE" "POD_UID" "TS_PORT" -}}
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
{{- if .Values.proxyClass.useLetsEncryptStagingEnvironment }}
{{- $taken = append $taken "TS_DEBUG_ACME_DIRECTORY_URL" }}
- name: TS_DEBUG_ACME_DIRECTORY_URL
  value: https://acme-staging-v02.api.letsencrypt.org/directory
{{- end }}
{{- $more := list }}
{{- range concat (reverse ((((.Values.proxyClass.statefulSet | default dict).pod | default dict).tailscaleContainer | default dict).env | default list)) (reverse (.Values.defaults.extraEnv | default list)) }}
{{- if not (has .name $taken) }}
{{- $taken = append $taken .name }}
{{- $more = prepend $more . }}
{{- end }}
{{- end }}
{{- with $more }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Spread over nodes and zones, unless the ProxyClass or the chart says otherwise. */}}
{{- define "workloads.topologySpreadConstraints" -}}
{{- $selector := dict "matchLabels" (include "workloads.selectorLabels" . | fromYaml) -}}
{{- range ((.Values.proxyClass.statefulSet | default dict).pod | default dict).topologySpreadConstraints | default .Values.defaults.topologySpreadConstraints }}
- {{ merge (deepCopy .) (dict "labelSelector" $selector) | toYaml | nindent 2 | trim }}
{{- end -}}
{{- end -}}

{{/* Longer than a pod may take to withdraw from the Service and to drain. */}}
{{- define "workloads.gracePeriod" -}}
{{- with .Values.defaults -}}
{{- .terminationGracePeriodSeconds | default (add .withdrawDelaySeconds .drainTimeoutSeconds 15) | int64 -}}
{{- end -}}
{{- end -}}

{{/* Pull secrets of the chart and of the ProxyClass, each once. */}}
{{- define "workloads.imagePullSecrets" -}}
{{- range concat (.Values.defaults.imagePullSecrets | default list) (((.Values.proxyClass.statefulSet | default dict).pod | default dict).imagePullSecrets | default list) | uniq }}
- {{ toYaml . | nindent 2 | trim }}
{{- end -}}
{{- end -}}
