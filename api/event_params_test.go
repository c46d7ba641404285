package api

import (
	"encoding/json"
	"strings"
	"testing"
)

// FuzzEventsSend: what is taken can be stored and shown: it reads the same when
// it is sent again, and holds nothing that was to be refused.
func FuzzEventsSend(f *testing.F) {
	for _, event := range []string{
		`{"type":"user.message","content":[{"type":"text","text":"é\u2028"}]}`,
		`{"type":"user.message","content":[{"text":"x","type":"text"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}},
{"type":"image","source":{"type":"url","url":"https://example.com/x"}},{"type":"document","title":null,"source":{"type":"text","media_type":"text/plain","data":"d"}}]}`,
		`{"type":"user.interrupt"}`, `{"type":"user.interrupt","session_thread_id":null}`, `{"type":"user.interrupt","session_thread_id":"sthr_1"}`,
		`{"type":"user.tool_confirmation","tool_use_id":"sevt_1","result":"deny","deny_message":"no"}`,
		`{"type":"user.custom_tool_result","custom_tool_use_id":"sevt_1","is_error":null}`,
		`{"type":"user.custom_tool_result","custom_tool_use_id":"sevt_1","is_error":true,"content":[{"type":"search_result","source":"s","title":"t","content":[{"type":"text","text":"x"}],"citations":{"enabled":false}}]}`,
		`{"type":"system.message","content":[{"type":"text","text":"x"}]}`,
		`{"type":"user.define_outcome"}`, `{"type":"user.message","content":[{"type":"redacted"}]}`,
		`{"type":"user.message","content":[{"type":"image","source":{"type":"file","file_id":"x"}}]}`,
	} {
		f.Add([]byte(`{"events":[` + event + `]}`))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var first EventsSend
		if Decode(body, &first) != nil {
			return
		}
		text, err := json.Marshal(first)
		if err != nil {
			t.Fatalf("%q cannot be written: %v", body, err)
		}
		var second EventsSend
		if err := Decode(text, &second); err != nil {
			t.Fatalf("%q is taken, and %s is not: %v", body, text, err)
		}
		again, err := json.Marshal(second)
		if err != nil || string(again) != string(text) {
			t.Fatalf("%s becomes %s, error %v", text, again, err)
		}
		for i, e := range first.Events {
			fields, err := e.Fields()
			var object map[string]json.RawMessage
			if err != nil || json.Unmarshal(fields, &object) != nil {
				t.Fatalf("event %d of %q has the fields %s, error %v", i, body, fields, err)
			}
			for _, name := range []string{"id", "type", "processed_at"} {
				if _, ok := object[name]; ok {
					t.Fatalf("event %d of %q says its own %s", i, body, name)
				}
			}
			if e.Message != nil {
				for _, block := range e.Message.Content {
					if strings.HasPrefix(string(block), `{"type":"redacted"`) {
						t.Fatalf("%q holds what nobody may send", body)
					}
				}
			}
		}
	})
}
