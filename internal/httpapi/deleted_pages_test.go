package httpapi_test

import (
	"fmt"
	"slices"
	"testing"
)

// TestPagesOfDeletedRows: a cursor goes on where its row was, although the row
// and all those of its page were deleted meanwhile; a page that is empty
// therefore has a way on, and no way leads round in a circle.
func TestPagesOfDeletedRows(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"desc", "asc"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			var made []string
			for range 9 {
				made = append(made, r.session(""))
			}
			if order == "desc" {
				slices.Reverse(made)
			}
			remove := func(ids ...string) {
				for _, id := range ids {
					r.must("DELETE", "/v1/sessions/"+id, "")
				}
			}
			list := "/v1/sessions?limit=3&order=" + order
			page := func(cursor string) answer {
				t.Helper()
				if cursor == "" {
					t.Fatal("there is no way on")
				}
				return r.must("GET", list+"&page="+cursor, "")
			}
			first := r.must("GET", list, "")
			second := page(first.str("next_page"))
			third := page(second.str("next_page"))

			// The row of the cursor, in both directions.
			remove(made[2], made[6])
			wantPage(t, page(first.str("next_page")), made[3], made[4], made[5])
			wantPage(t, page(third.str("prev_page")), made[3], made[4], made[5])
			// All that come behind it: back from there, and on to the end again.
			remove(made[7], made[8])
			empty := page(second.str("next_page"))
			wantPage(t, empty)
			if empty.body["next_page"] != nil {
				t.Error("behind the end there is a page")
			}
			back := page(empty.str("prev_page"))
			wantPage(t, back, made[3], made[4], made[5])
			wantPage(t, page(back.str("next_page")))
			back = page(back.str("prev_page"))
			wantPage(t, back, made[0], made[1])
			if back.body["prev_page"] != nil {
				t.Error("before the first page there is a page")
			}
			// All that come before it.
			remove(made[0], made[1], made[3])
			empty = page(page(first.str("next_page")).str("prev_page"))
			wantPage(t, empty)
			if empty.body["prev_page"] != nil {
				t.Error("before the beginning there is a page")
			}
			wantPage(t, page(empty.str("next_page")), made[4], made[5])
			// All there were.
			remove(made[4], made[5])
			empty = page(page(second.str("next_page")).str("prev_page"))
			wantPage(t, empty)
			empty = page(empty.str("next_page"))
			wantPage(t, empty)
			if empty.body["next_page"] != nil {
				t.Error("an empty list has a next page without end")
			}
		})
	}
}

// TestForwardPagesOfDeletedRows is the same of lists that go forward only.
func TestForwardPagesOfDeletedRows(t *testing.T) {
	t.Parallel()
	for path, gone := range map[string]struct{ method, suffix string }{
		"/v1/environments": {"DELETE", ""},
		"/v1/agents":       {"POST", "/archive"}, // agents are not deleted; archiving takes them off the list
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			var made []string
			for i := range 7 {
				body := fmt.Sprintf(`{"name":"n%d"}`, i)
				if path == "/v1/agents" {
					body = fmt.Sprintf(`{"name":"n%d","model":"m"}`, i)
				}
				made = append(made, r.must("POST", path, body).str("id"))
			}
			slices.Reverse(made)
			remove := func(ids ...string) {
				for _, id := range ids {
					r.must(gone.method, path+"/"+id+gone.suffix, "")
				}
			}
			first := r.must("GET", path+"?limit=3", "")
			wantPage(t, first, made[:3]...)
			on := path + "?limit=3&page=" + first.str("next_page")
			remove(made[1], made[2], made[3])
			second := r.must("GET", on, "")
			wantPage(t, second, made[4:]...)
			remove(made[4:]...)
			empty := r.must("GET", on, "")
			wantPage(t, empty)
			if empty.body["next_page"] != nil {
				t.Error("behind the end there is a page")
			}
		})
	}
}

// wantPage checks the ids of a page.
func wantPage(t *testing.T, page answer, ids ...string) {
	t.Helper()
	var got []string
	for _, row := range page.body["data"].([]any) {
		got = append(got, row.(map[string]any)["id"].(string))
	}
	if !slices.Equal(got, ids) {
		t.Fatalf("a page has %v, want %v", got, ids)
	}
}
