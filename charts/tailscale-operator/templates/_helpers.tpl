{{/*
Name of the namespaced objects: the operator's Deployment, ServiceAccount, Role and
state Secret. It is the official chart's, so that the device's state carries over.
*/}}
{{- define "tailscale-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if .Values.nameOverride -}}
{{- if contains .Values.nameOverride .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- else -}}
operator
{{- end -}}
{{- end -}}

{{/*
Name of the ServiceAccount whose token proxied requests carry. It follows the
overrides, so that two releases in one namespace do not share it.
*/}}
{{- define "tailscale-operator.impersonator" -}}
{{- if or .Values.fullnameOverride .Values.nameOverride -}}
{{- printf "%s-kube-apiserver-auth-proxy" (include "tailscale-operator.fullname" .) -}}
{{- else -}}
kube-apiserver-auth-proxy
{{- end -}}
{{- end -}}

{{/*
Name of the cluster-scoped objects. Namespace and name are parts of it, with a
separator that neither can contain, so that no two releases in a cluster collide.
*/}}
{{- define "tailscale-operator.clusterName" -}}
{{- printf "tailscale-auth-proxy:%s:%s" .Release.Namespace (include "tailscale-operator.fullname" .) -}}
{{- end -}}

{{/*
Labels that never change over the life of a release. A Deployment's selector cannot
change, so neither the chart's version nor a name override may be among them.
*/}}
{{- define "tailscale-operator.selectorLabels" -}}
app.kubernetes.io/name: tailscale-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "tailscale-operator.commonLabels" -}}
app.kubernetes.io/name: tailscale-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Labels of the operator's own objects. */}}
{{- define "tailscale-operator.labels" -}}
{{ include "tailscale-operator.commonLabels" . }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of the objects behind proxied requests. */}}
{{- define "tailscale-operator.authproxyLabels" -}}
{{ include "tailscale-operator.commonLabels" . }}
app.kubernetes.io/component: auth-proxy
{{- end -}}

{{/* "true", "noauth" or "false", whether the value is a string or a boolean. */}}
{{- define "tailscale-operator.mode" -}}
{{- .Values.apiServerProxyConfig.mode | toString -}}
{{- end -}}

{{/* Not empty if something in or outside the operator's pod impersonates callers. */}}
{{- define "tailscale-operator.impersonates" -}}
{{- if or (eq (include "tailscale-operator.mode" .) "true") (eq (toString .Values.apiServerProxyConfig.allowImpersonation) "true") -}}
true
{{- end -}}
{{- end -}}

{{/* The --tls flag's word for tls.source. YAML reads a bare off as false. */}}
{{- define "tailscale-operator.tls" -}}
{{- $source := toString .Values.tls.source -}}
{{- get (dict "acme" "acme" "secret" "file" "off" "off" "false" "off") $source -}}
{{- end -}}

{{/* Not empty if the chart itself renders the OAuth client's Secret. */}}
{{- define "tailscale-operator.rendersOAuthSecret" -}}
{{- if and .Values.oauth.clientId .Values.oauth.clientSecret -}}
true
{{- end -}}
{{- end -}}

{{- define "tailscale-operator.image" -}}
{{- with .Values.operatorConfig.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Longer than requests may drain, or the kubelet would cut them. */}}
{{- define "tailscale-operator.gracePeriod" -}}
{{- with .Values.operatorConfig -}}
{{- .terminationGracePeriodSeconds | default (add .drainTimeoutSeconds 15) | int64 -}}
{{- end -}}
{{- end -}}

{{/* Names of the variables that the chart sets and the value that decides each. */}}
{{- define "tailscale-operator.ownEnv" -}}
APISERVER_PROXY: apiServerProxyConfig.mode
CLIENT_ID: oauth.clientId
CLIENT_ID_FILE: oauth or oauthSecretVolume
CLIENT_SECRET_FILE: oauth or oauthSecretVolume
OPERATOR_HOSTNAME: operatorConfig.hostname
OPERATOR_INITIAL_TAGS: operatorConfig.defaultTags
OPERATOR_LOGGING: operatorConfig.logging
OPERATOR_LOGIN_SERVER: loginServer
OPERATOR_NAMESPACE: the release's namespace
OPERATOR_SECRET: fullnameOverride
OPERATOR_SERVICE_ACCOUNT_NAME: fullnameOverride
POD_NAME: nothing, it is the pod's name
POD_UID: nothing, it is the pod's UID
TS_AUTHKEY: authKey.secretName
{{- end -}}
